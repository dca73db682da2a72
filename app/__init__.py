"""The Manager: a Flask monolith of rooms (features) over a kernel (mechanisms); `app.factory` wires them."""

__version__ = "0.1.0"
