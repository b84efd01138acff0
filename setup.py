"The package for pip: every fact comes from settings.ini"
import re
from configparser import ConfigParser
import setuptools

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
needs = {extra: cfg[f'{extra}_requirements'].split() for extra in ('dev', 'interop', 'data', 'triton')}

def readme(): # links that start in the repository, from anywhere
    text = open('README.md', encoding='utf-8').read()
    text = re.sub(r'(!\[[^\]]*\]\()(?!\w+:|#)', rf"\1{cfg['git_url']}/raw/{cfg['branch']}/", text)
    return re.sub(r'((?<!!)\[[^\]]*\]\()(?!\w+:|#)', rf"\1{cfg['git_url']}/blob/{cfg['branch']}/", text)

setuptools.setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', license_files=['LICENSE'], url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Source': cfg['git_url'], 'Issues': cfg['git_url'] + '/issues',
                  'Changelog': f"{cfg['git_url']}/blob/{cfg['branch']}/.github/CHANGELOG.md"},
    long_description=readme(), long_description_content_type='text/markdown',
    packages=setuptools.find_packages(include=['snnbook', 'snnbook.*']), package_data={'snnbook': ['py.typed']},
    python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(), extras_require=needs,
    entry_points={'console_scripts': [cfg['console_scripts']], 'nbdev': ['snnbook=snnbook._modidx:d']},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Developers', 'Intended Audience :: Science/Research',
                 'Intended Audience :: Education', 'Natural Language :: English', 'Natural Language :: Chinese (Simplified)',
                 'Operating System :: OS Independent', 'Programming Language :: Python :: 3 :: Only', 'Typing :: Typed',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'] +
                [f'Programming Language :: Python :: 3.{v}' for v in (11, 12, 13)],
    zip_safe=False)
