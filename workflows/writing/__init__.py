"""What helps to write a sweep file: a first one that runs, and the schema by which editors complete and check it."""
