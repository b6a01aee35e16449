"""What several tests of TLS need."""


class Broken:
    """A signer whose token was pulled out, or in the midst of whose work something comes."""

    def __init__(self, public_key, error):
        self.public_key, self.error = public_key, error

    def sign(self, message):
        raise self.error
