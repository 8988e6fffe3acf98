"""From captions to paraphrases: prompts, engines, gates, and the loop that asks for what is missing."""
