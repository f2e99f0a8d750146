"""The web side: HTTP in, HTTP out. The only room where Flask may be imported."""
