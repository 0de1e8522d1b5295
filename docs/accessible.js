// What scrolls sideways is reached by the keyboard, and the buttons that copy code are no navigation.
const mend = () => {
  for (const element of document.querySelectorAll("pre code, p, .math, .tabbed-labels, .md-typeset__scrollwrap"))
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0
    else element.removeAttribute("tabindex")
  for (const buttons of document.querySelectorAll(".md-code__nav")) buttons.setAttribute("role", "none")
}
new MutationObserver(mend).observe(document.body, {childList: true, subtree: true})
addEventListener("resize", mend)
mend()
