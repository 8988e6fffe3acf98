"""What a small language model needs and a capable one does not: word lists, gates on details, and synonyms.

A model of 135 M parameters copies most of a caption and errs in most of what it changes. So its answers are compared
with the caption word by word, and further answers are made from its own synonyms of single words.
"""
