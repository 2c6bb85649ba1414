"""``puregrid report --format paper``: what a reviewer asks for, as LaTeX, with images that anybody can judge."""
