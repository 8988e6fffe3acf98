"""Settings from YAML, environment and overrides."""

from __future__ import annotations

import contextlib
import re
import string
import traceback
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.options import meaning
from paraclip_core.settings import at_environment_root, deployed_settings, fields, load_settings, parse_settings

CONFIGS = Path(__file__).parents[2] / "configs"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, "utf-8", "surrogateescape")
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_a_shipped_configuration_has_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_path = load_settings(CONFIGS / f"{name}.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_settings(name) == by_path
    Path(name).write_text("name: mine\n")
    assert load_settings(name).name == "mine", "a file comes before it"


def test_later_sources_win(tmp_path: Path) -> None:
    path = write(tmp_path, "run: {root: from-file, threads: 3}\nname: file\n")
    assert load_settings(path).run.root == "from-file"
    assert load_settings(path, environ={"PARACLIP_ROOT": "from-env"}).run.root == "from-env"
    settings = load_settings(path, ["run.root=from-set"], {"PARACLIP_ROOT": "from-env"})
    assert (settings.run.root, settings.run.threads, settings.name) == ("from-set", 3, "file")
    environ = {"PARACLIP_ROOT": "/there"}
    assert at_environment_root(Settings(), environ).run.root == "/there"
    assert at_environment_root(load_settings(None, ["run.root=mine"]), environ).run.root == "mine"
    assert at_environment_root(Settings(), {}) == Settings()


def test_overrides_reach_lists_and_empty_groups() -> None:
    overrides = [
        "data.index.features=f.npy",
        "model.base=mine",
        "data.sources.0.path=17",
        "data.sources.1={path: b.csv, format: csv}",
    ]
    overrides += ["finetune.alpha.grid=[0, 1]", "finetune.learning_rate=1e-4", "evaluate.gate.max_drop={}", "name=2024"]
    settings = load_settings(None, [*overrides, "data.sources.0.split=null"])
    assert settings.data.index is not None and settings.data.index.features == "f.npy"
    # A name that looks like a number stays a name.
    assert [source.path for source in settings.data.sources] == ["17", "b.csv"] and settings.name == "2024"
    assert settings.data.sources[0].split is None
    assert settings.finetune.alpha.grid == (0.0, 1.0) and settings.finetune.learning_rate == (1e-4,)
    assert settings.evaluate.gate.max_drop == {}


@pytest.mark.parametrize(("given", "columns"), [("0", "0"), ("[a, b]", ("a", "b")), ("true", "true"), ("null", None)])
def test_the_caption_is_one_column_or_several(given: str, columns: object) -> None:
    settings = load_settings(None, ["data.sources.0.path=x", f"data.sources.0.columns.caption={given}"])
    assert settings.data.sources[0].columns.caption == columns
    dumped = settings.model_dump(mode="json")
    assert parse_settings(dumped) == parse_settings(yaml.safe_load(yaml.safe_dump(dumped))) == settings
    meant = meaning(settings)["data"]["sources"][0]["columns"]["caption"]
    assert meant == (list(columns) if isinstance(columns, tuple) else columns)


def test_all_errors_at_once_with_field_and_value(tmp_path: Path) -> None:
    path = write(tmp_path, "finetune: {epochs: many, batch_size: 1}\nparaphrase: {engine: gpt}\nnam: x\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    text = str(caught.value)
    for part in (str(path), "finetune.epochs", "'many'", "finetune.batch_size", "2, got 1", "openvino", "nam is no"):
        assert part in text, part


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # A typo names the nearest option.
        ("finetune.learning_rat=1", r"finetune\.learning_rat .*finetune\.learning_rate"),
        ("fine_tune={}", "fine_tune .*finetune"),
        ("sources=[]", r"sources .*data\.sources"),
        ("data.sources.0.fomat=csv", r"data\.sources\.0\.fomat .*data\.sources\.0\.format"),
        ("data.zzzzzzzz=1", r"data\.zzzzzzzz .*data has root"),
        # What nothing can keep is refused.
        ("run.threads=100000", "less than or equal to 1024"),
        (r'run.root="a\0b"', "NUL character"),
        ("data.min_words=99", r"data: min_words \(99\) must not be above max_words"),
        ("paraphrase.openai.extra_body={since: 2024-01-01}", "expected a value that JSON can represent"),
        ("finetune.feature_distillation=.inf", "should be a finite number, got inf"),
        ("evaluate.gate.max_drop={sts/spearman: .nan}", "should be a finite number, got nan"),
        (f"paraphrase.seed={2**63}", r"paraphrase\.seed: .*does not fit into 64 bits"),
    ],
)
def test_an_override_that_cannot_be_taken_is_explained(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(None, ["data.sources.0.path=x", override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.epoks=3", "overrides: finetune.epoks=3: finetune.epoks is not an option; did you mean finetune.ep"),
        ("finetune={epoks: 3}", "overrides: finetune=…: finetune.epoks is not an option; did you mean finetune.epochs"),
        ("data.min_words=99", "overrides: data.min_words=99: data: min_words (99) must not be above max_words (15)"),
        ("data.sources.1.images=x", "overrides: data.sources.1.images=…: data.sources.1.path is required"),
        ("data.sources.2.images=x", "overrides: data.sources.2.images=…: data.sources has 1 items, so there is no '2'"),
        ("name", "overrides: 'name' must look like group.option=value"),
        ("=3", "overrides: '=3' must look like group.option=value"),
        ("a..b=1", "overrides: 'a..b=1' must look like group.option=value"),
        ("name=[", "overrides: name=… is not a YAML value: "),
        ("name=2024-02-30", "overrides: name=… is not a YAML value: "),
        ("data.sources.x.path=1", "overrides: data.sources.x.path=1: data.sources has 1 items, so there is no 'x'"),
    ],
)
def test_a_wrong_override_is_not_blamed_on_the_file(override: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "finetune: {seed: 1}\ndata: {sources: [{path: a}]}")
    for settings, config in ((Settings(), str(path)), (load_settings(path), "")):
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
            deployed_settings(settings, config, [override], {})
    with pytest.raises(ConfigError, match=f"^{re.escape(message.replace('overrides: ', '--set ', 1))}"):
        load_settings(path, [override])


def test_a_wrong_file_is_not_blamed_on_an_override(tmp_path: Path) -> None:
    path = write(tmp_path, "finetune: {feature_distillation: much}\ndata: {sources: [{pth: a}]}")
    with pytest.raises(ConfigError) as caught:
        load_settings(path, ["finetune.seed=2", "data.sources.0.images=x", "finetune.epoks=3"])
    of_file, of_override = str(caught.value).split("; --set ")
    assert of_file.startswith(f"{path}: data.sources.0.path is required; data.sources.0.pth is not an option")
    assert "finetune.feature_distillation" in of_file and of_override.startswith(
        "finetune.epoks=3: finetune.epoks is not an option"
    )
    path = write(tmp_path, "data: {min_words: 99}")
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: data: min_words"):
        load_settings(path, ["data.root=x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("\udcff\udcfe\udc80", "not UTF-8"),
        ("[1, 2]", "must hold options"),
        ("a: [", "not valid YAML"),
        ("name: a\nname: b\n", r'"name" is given twice \(line 2, column 1\)'),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("name: 2024-02-30", "not valid YAML"),
        ("{a: " * 5000, "not valid YAML"),
        ("finetune: {seed: !!bool x}", "not of the expected kind"),
    ],
    ids=range(9),
)
def test_bad_files(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "absent.yaml" if text is None else write(tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        load_settings(path)


@pytest.mark.parametrize(
    "text",
    ["KEY=hunter22\nOTHER=1", "KEY=a: hunter22: b", "*hunter22", "!hunter22 x", "%hunter22", "!!int hunter22",
     "hunter22: [", "'hunter22", "!!float hunter22", "!!bool hunter22", "- hunter22", "a: 'hunter22\x01'", "@hunter22"],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    """Who may start a run may name any file of the worker."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(str(path))) as raised:
        load_settings(path)
    assert "hunter22" not in "".join(traceback.format_exception(raised.value))


@given(st.dictionaries(st.text(string.ascii_lowercase + "._0", max_size=12), st.integers() | st.text(max_size=5)))
def test_any_tree_is_read_or_refused_by_name(tree: dict[str, object]) -> None:
    try:
        parse_settings(tree)
    except ConfigError as error:
        assert str(error).startswith("the settings: ")


@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_override_is_taken_or_refused(overrides: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        load_settings(None, overrides)


def test_every_option_has_a_description() -> None:
    paths = [path for path, _ in fields()]
    assert "paraphrase.filters.min_similarity" in paths and "data.sources.0.columns.caption" in paths
    schema = Settings.model_json_schema()
    bare = [
        f"{group}.{name}"
        for group, part in {**schema["$defs"], "Settings": schema}.items()
        for name, field in part["properties"].items()
        if not field.get("description") and "$ref" not in field
    ]
    assert not bare


@pytest.mark.parametrize(
    "override",
    [
        "paraphrase.openai.base_url=https://user:hunter2@host/v1",
        "paraphrase.openai.base_ulr=https://user:hunter2@host/v1",
        "paraphrase.openai.api_key_env=sk-hunter2",
        "paraphrase.openai={base_url: 'https://user:hunter2@host/v1'}",
        "paraphrase={openai: {api_key_env: sk-hunter2}}",
    ],
)
def test_no_message_repeats_a_key(override: str, tmp_path: Path) -> None:
    path = write(tmp_path, "paraphrase: {openai: {api_key_env: sk-hunter2, base_url: 'https://user:hunter2@host/v1'}}")
    for file in (None, path):
        with pytest.raises(ConfigError, match="paraphrase") as caught:
            load_settings(file, [override])
        assert "hunter2" not in str(caught.value)


def test_a_deployment_takes_a_file_or_single_options(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: filed\nfinetune: {epochs: 4}\n")
    typed = Settings(name="given")
    filed = deployed_settings(typed, str(tmp_path / "run.yaml"), ["finetune.batch_size=64"], {})
    assert (filed.name, filed.finetune.epochs, filed.finetune.batch_size) == ("filed", 4, 64)
    by_url = deployed_settings(typed, f"file://{tmp_path}/run.yaml", (), {"PARACLIP_ROOT": "/r"})
    assert (by_url.name, by_url.run.root) == ("filed", "/r")
    changed = deployed_settings(typed, "", ["finetune.epochs=2"], {"PARACLIP_ROOT": "/r"})
    assert (changed.name, changed.finetune.epochs, changed.run.root) == ("given", 2, "/r")
    with pytest.raises(ConfigError, match=r"finetune\.epoch is not an option"):
        deployed_settings(typed, "", ["finetune.epoch=2"], {})
    with pytest.raises(ConfigError, match=r"cannot read memory://absent\.yaml"):
        deployed_settings(typed, "memory://absent.yaml", (), {})
