"""One page of HTML about tokenised data sets: `noisebook report`. See docs/report.md."""
