"""One pipeline behind HTTP, in the words of OpenAI's images and videos."""
