"""Web archives and web pages: records, charsets, the main text."""
