"""``puregrid leaderboard``: sweeps of several stores as one board; static pages, one a defence and one a claim."""
