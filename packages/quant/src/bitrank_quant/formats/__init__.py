"""Number formats as values: encode, decode, bytes, and a text form that parses back."""
