"""TREC-6, SST-2 and AG News fine-tunes of all-MiniLM-L6-v2: a campaign on a real encoder."""
