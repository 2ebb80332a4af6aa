"""A run as one page of HTML; nothing here needs torch to be imported."""
