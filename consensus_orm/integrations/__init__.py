"""The store in the frameworks of web applications."""
