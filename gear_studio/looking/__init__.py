"""Looking at trained models: which pictures are looked at (`pictures`), and what is seen of one (`view`)."""
