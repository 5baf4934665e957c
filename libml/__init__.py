"""What MixMatch is built from. docs/design.md has a picture of the modules; imports run one way."""
