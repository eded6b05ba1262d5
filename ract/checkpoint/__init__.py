"""Model directories: a plain Hugging Face checkpoint plus ``lineage.json``, read and written safely."""
