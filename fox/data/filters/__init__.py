"""Which web documents are worth training on: by their address, their language, their words and their form."""
