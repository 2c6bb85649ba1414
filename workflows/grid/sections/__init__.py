"""What a sweep file says beside its entries: the sections that hold one thing, and the size of the grid."""
