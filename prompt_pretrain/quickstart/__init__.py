"""The whole story on a small synthetic world: pre-train a prompt, export class embeddings, classify, report."""
