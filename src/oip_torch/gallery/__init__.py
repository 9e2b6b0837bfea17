"""One page of an atlas, to keep and to share."""
