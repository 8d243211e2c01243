"""Duplicates across all sources of a corpus: the same text again, nearly the same text again, and lines that other documents have.

Documents are known by (task, index): the task that reads them, and their place in it. Tasks are numbered by preference, and of documents that are
alike the first stays. Each step is a plain function on files of one folder, so that many machines can share the work:

1. `signatures.SignatureWriter`, for each task: what tells its documents apart, in some hundred bytes a document.
2. `groups.find_duplicates`, for each bucket of `signatures.num_buckets`: who is whose copy, and who may be nearly one.
3. `candidates.plan_verification`, once: which of these must be compared with each other;
   `candidates.write_shingles`, for each task: what is compared of them, from their texts, read once and in order;
   `near.verify`, for each part of the plan: who is nearly a copy indeed. (`near.verify_all` does the three in turn, for a corpus of one machine.)
4. `drops.Drops.load`, for each task: what is to be left out of it.

Every file is written whole or not at all and says what it was made from; a step whose file is there and still right does nothing. None of the
results depends on how many workers, buckets or parts there were, nor on where one task ends and the next begins.
"""
