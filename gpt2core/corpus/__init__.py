"""From documents to token shards: read, split, tokenize."""
