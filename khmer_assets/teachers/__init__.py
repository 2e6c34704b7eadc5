"""Teachers: larger models that label and write, asked over OpenAI's protocol, each answer paid once."""
