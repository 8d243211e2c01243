"""The sources made into a corpus: read, cleaned, filtered and de-duplicated by many processes, or machines, and kept as Parquet."""
