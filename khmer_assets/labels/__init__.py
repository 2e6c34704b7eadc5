"""What teachers, persons and a model of our own say of a document: is it true, safe, of which topics, and how good."""
