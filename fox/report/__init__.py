"""A run on one page: what it left (run_files), its charts (charts, plots, style), its tables, and the whole (page)."""
