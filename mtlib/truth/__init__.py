"""The demo knows every error: causes against single features."""
