"""Publishing a merged model on the Hugging Face Hub."""
