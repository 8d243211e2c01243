"""Which documents are most like examples of what is wanted: a score for each, and where the best of all of them begin.

score.py     what the score looks at, and the score of a text
examples.py  documents to learn the score from, few enough for any memory
train.py     the score learnt from them, and how well it tells them apart
rank.py      the best so many of the documents of many tasks
"""
