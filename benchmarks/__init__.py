"""Side-by-side measurements of polarstream and its peers; see README.md."""
