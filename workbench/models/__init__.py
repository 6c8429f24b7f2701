"""Models behind small protocols: batch in, batch out. One file a family; fakes at the same seam."""
