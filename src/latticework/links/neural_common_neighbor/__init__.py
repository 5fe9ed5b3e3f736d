"""NCN and NCNC: a link is scored from its two node vectors and the sum of its common neighbours' vectors.

Source: Wang, Yang and Zhang, "Neural Common Neighbor with Completion for Link Prediction" (ICLR 2024, arXiv 2302.00890).
"""
