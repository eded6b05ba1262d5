"""A run as records, figures and a page; made from saved lineages alone."""
