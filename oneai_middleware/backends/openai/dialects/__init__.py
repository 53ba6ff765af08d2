"""What kinds of provider do otherwise than OpenAI's protocol says."""
