"""How both planes are served: gunicorn's configuration, our worker class and TLS. What is served the factory says."""
