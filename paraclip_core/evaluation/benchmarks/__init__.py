"""The benchmark families, one file each: reading the published format, and measuring one model on it."""
