"""Networks and closed-form priors that come with the package."""
