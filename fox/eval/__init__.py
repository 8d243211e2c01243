"""What a model knows of text that it never saw: bits per byte, beside a bigram's, and how its replies read."""
