"""Readers of caption sources: one file per format, and a registry that picks one by name and first bytes.

A reader is a function of a path and the source's options that yields batches of rows. A bad row becomes a reject; a
file that is bad as a whole raises ``InputError``. Row numbers are those that help to find the row: lines count from 1
as in an editor, records of Parquet, JSON and tar from 0.
"""
