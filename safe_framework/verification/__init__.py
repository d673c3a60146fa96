"""The certificate: the laws of docs/laws.md, checked on one model and written down."""
