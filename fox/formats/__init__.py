"""The files that others read and write too: token shards (datatrove's) and model directories (Hugging Face's). All are checked as hostile."""
