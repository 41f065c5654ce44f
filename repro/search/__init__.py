"""Finding the guide, EMA lengths and weight that serve a main network best."""
