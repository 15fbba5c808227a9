"""The Coordinator as a Ray actor: which worker gets which job."""
