"""Reading from the Hugging Face Hub."""
