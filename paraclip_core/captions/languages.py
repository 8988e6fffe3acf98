"""Whether a caption is in English, by py3langid's naive Bayes model over byte sequences of 139 languages."""

from __future__ import annotations

from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

LIKELIER = 20
"""How many times as likely as English another language must be, because short captions look like many languages. Of
10,000 captions each, COCO's, Flickr8k's and CC3M's are all English; of LAION's, 1.6 % are not."""


def is_english(caption: str) -> bool:
    """Whether no other language is much likelier; unreliable for a word or two."""
    likelihoods = dict(_identifier().rank(caption))
    return max(likelihoods.values()) < LIKELIER * likelihoods["en"]


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
