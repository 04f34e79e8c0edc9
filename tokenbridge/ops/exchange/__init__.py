"""Models from elsewhere, and to elsewhere: released weights as folders of ours, exports with a card."""
