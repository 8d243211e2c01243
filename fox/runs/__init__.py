"""A run: its folder and manifests (folder), the steps that fill it (steps), and doing them in order (pipeline)."""
