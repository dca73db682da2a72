"""What belongs to no feature: health, Prometheus, the API's documents, preferences, the style page."""
