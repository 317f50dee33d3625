"""``recbole-adv report``: what runs did, as a page of HTML and as markdown."""
