"""What :class:`workflows.results.reader.Results` stands on: the committed rows of cells, some of them in memory."""
